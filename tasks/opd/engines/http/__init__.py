"""Models behind vLLM's OpenAI-compatible servers.

server_engine  the engine
replicas       requests over several servers, tried again within bounds
probe          what a server can do, asked once
"""
