"""The service: queries over HTTP, with tokens, limits and a queue, for teams that share a cluster.

`raystream.service.app` makes the application, `raystream.service.client` talks to one. All that is known of requests lies in the store
(`raystream.service.runs`): a server that is killed loses none, and several may serve one store.
"""
