"""Byzantine workers as data: what they send, what they train on, when they lie, what their machines do in time."""
