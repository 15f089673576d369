"""The built-in world: a tiny diffusion pipeline, teacher and judge, and the script that trains them."""
