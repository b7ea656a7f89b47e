"""What runs inside every image: it loads one model folder, answers for it over HTTP and logs what it answered; and the router before it.

Imports nothing of the other rooms, because an image serves with the code that it was packaged with.
"""
