"""Measurements that anyone can repeat; results are kept under results/ by hardware and date."""
