"""The analog matrix-vector product of a layer: what its tiles hold, and what they do to an input."""
