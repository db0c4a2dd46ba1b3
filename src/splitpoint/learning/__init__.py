"""Deciding one request at a time: the decision process, prioritized replay, the agent."""
