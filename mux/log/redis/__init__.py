"""The store in Redis or Valkey. It imports redis-py, an extra, so nothing here is imported unasked."""
