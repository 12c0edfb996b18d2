"""What a user can leave running, as a program of the test image."""

STUBBORN = r'''#!/usr/bin/python3
"""All that could outlive a session. Says so in /tmp/stubborn when everything of it runs."""
import os, resource, signal, subprocess, sys, time
home = "/home/player"
os.chdir(home)
for sign in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(sign, signal.SIG_IGN)  # inherited by all below

# The home is soiled in every way that a user has.
os.makedirs("saves/deep")
with open("saves/deep/big", "wb") as big:
    big.write(os.urandom(3_000_000))
with open(".profile", "a") as profile:
    profile.write("exit\n")
os.unlink("dangling")
os.symlink("/etc/passwd", "dangling")
os.unlink(".config/game/current")
os.chmod(".config/game/run", 0o777)
os.chmod(home, 0o777)
os.mkfifo("saves/fifo")

def start(*command, **options):
    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)

start("sleep", "3001")
start("setsid", "-f", "nohup", "sleep", "3002")
start("tmux", "new-session", "-d", "sleep 3003")
start("sh", "-c", "exec sleep 3004 9>held", cwd="saves/deep")
start("unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
      "mount -t tmpfs mine saves && exec sleep 3005")
start("systemd-run", "--user", "--scope", "--quiet", "sleep", "3006")
if os.fork() == 0:
    os.setsid()
    os.kill(os.getpid(), signal.SIGSTOP)
if os.fork() == 0:  # forks without end, within a bound that leaves the test's machine something
    resource.setrlimit(resource.RLIMIT_NPROC, (60, 60))
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.01)
end = time.monotonic() + 20
while time.monotonic() < end:
    lines = subprocess.run(["ps", "-u", "player", "-o", "args="], capture_output=True, text=True).stdout
    if all(f"sleep 300{number}" in lines for number in range(1, 7)):
        open("/tmp/stubborn", "w").close()
        break
    time.sleep(0.1)
signal.pause()
'''
