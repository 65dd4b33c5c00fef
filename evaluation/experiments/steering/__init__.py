"""Does a policy steer, or does it only know a good schedule?"""
