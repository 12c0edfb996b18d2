"""One module per family of distributions; `director` picks one by the recipe's `family`."""
