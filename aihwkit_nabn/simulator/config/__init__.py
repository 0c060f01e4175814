"""RPU configurations: the one all derive from, ready-made ones, their options, their forms as text and JSON."""
