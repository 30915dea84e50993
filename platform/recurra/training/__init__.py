"""Loop, step, checkpoint and elastic resume; ray_launch.py and ray_control.py are the only Ray files."""
