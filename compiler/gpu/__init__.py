"""Making GPU executables: what toolchain processes compile, what is loaded, and where ATen's op runs instead."""
