"""From a recipe to a version: an island without Django. `director.build` is the way in; see docs/builder.md."""
