"""Durable execution: journaled steps, exactly-once effects, and replay after a crash."""
