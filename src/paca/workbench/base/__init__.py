"""What all verbs need: files, processes, progress, YAML, schemas of sections, messages."""
