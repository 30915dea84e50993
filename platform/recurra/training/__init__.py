"""Loop, step, checkpoint and elastic resume; ray_launch.py is the only Ray file."""
