"""Other ways to boot a client without a disk, each as its own documentation says, from the same packages."""
