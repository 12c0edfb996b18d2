"""The REST API's ground: tokens, problem details, cursor pages, scoped views. Each app brings its own resources."""
