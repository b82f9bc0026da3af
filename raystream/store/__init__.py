"""All that is kept: units' outputs with their receipts, queries with their manifests, fits; in a folder or a bucket behind one protocol.

Everything durable is committed by `put_if_absent`: of any number of writers exactly one wins, and what it wrote is whole. Files that no
receipt or manifest names do not exist for a reader. Names are relative, with slashes.
"""
