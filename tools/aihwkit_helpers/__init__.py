"""What aihwkit's own tests import from `tests.helpers`."""
