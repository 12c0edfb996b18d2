"""What a recipe needs so that tests can look into a running PC. Never part of a real image."""

from images.builder.recipe import RecipeFile

# Console.sh types into this shell.
ROOT_SHELL = RecipeFile(
    "/etc/systemd/system/serial-getty@ttyS0.service.d/root-shell.conf",
    "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --keep-baud 115200 %I $TERM\n",
)
ROOT_LOGIN = "root@[^:]+:~# "
