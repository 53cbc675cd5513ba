"""What a notebook shows: views of files and logs, and forms for settings. Imports lorakit, never the reverse."""
