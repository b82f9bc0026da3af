"""The service and its page: a store's queries over HTTP, with tokens, limits and a queue, and what people look at in a browser.

`raystream.service.app` makes the application, `raystream.service.client` talks to one. All that is known of requests lies in the store
(`raystream.service.runs`): a server that is killed loses none, and several may serve one store.
"""
