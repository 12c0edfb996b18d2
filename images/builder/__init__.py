"""From a recipe to a version: an island without Django. The way in is `director.build`."""
