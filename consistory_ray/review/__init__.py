"""A local web application in which people look at an output and decide: pick, reject, another take, a note.

* ``catalogue``: the pictures of an index, scene by scene, with all takes of each.
* ``query``: which of them somebody wants to see, in which order.
* ``sheet``: where each of them stands, in columns, for filters.
* ``board``: everybody's decisions, and what the page is told of them.
* ``desk``: decisions on their way to storage, and those of others on their way here.
* ``previews``: small pictures, made once.
* ``access``: who is let in.
* ``app``, ``server``: the addresses, and the process that answers them.
* ``static``: the page.
"""
