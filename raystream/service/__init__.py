"""The service and its page: a store's queries over HTTP, and what people look at in a browser."""
