"""What this machine is: its memory, its GPU, the device and floating point type that train. Imports files and below."""
