"""The quickstart: three narrow tasks that the project generates, and the pocket base model they are trained on."""
