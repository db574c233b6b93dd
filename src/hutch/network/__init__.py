"""The network of sandboxes: policies, and the processes that enforce them."""
