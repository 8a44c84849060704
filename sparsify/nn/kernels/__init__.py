"""Native functions of sparse training; one file each, compiled into one library."""
