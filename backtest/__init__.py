"""The controller under a replayed clock: what would a policy have done with a recorded stream, and what would have served?"""
