"""Does the schedule change the peak of the test loss over the width?"""
