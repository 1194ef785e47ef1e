"""One file per corpus family: an official release on disk becomes rows."""
