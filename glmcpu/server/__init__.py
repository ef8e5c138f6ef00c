"""The HTTP server: OpenAI's protocol and the official one over one engine. Needs the extra "server".

run.py          port, signals, uvicorn          protocol.py   deadlines for slow clients
guard.py        who may come in, with what      telemetry.py  metrics and a log line for each request
app.py          all of it put together          service.py    the model while it loads, and its engine
room.py         refusals when all is taken      routes.py     what all routes share
openai_api.py   /v1/..                          official_api.py   POST /
fields.py       what a request may say          conversation.py   messages to a prompt
choices.py      answers as they come            json_answers.py   answers held to JSON
replies.py      answers in OpenAI's two forms   schemas.py    what they look like, for /docs
problems.py     every refusal's shape
"""
