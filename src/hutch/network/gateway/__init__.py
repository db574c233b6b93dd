"""The gateway: every connection of every sandbox ends here, is judged, and is carried on.

One unprivileged process (process.py) in the host's namespace. It serves the daemon's requests
(control.py); a sandbox's state is a `Sandbox`, whose listener, DNS and SNTP sockets were made in
the sandboxes' namespace by netd.
"""
