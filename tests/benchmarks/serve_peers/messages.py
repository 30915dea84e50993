"""What the peers that speak pydantic are asked.

Annotations are not postponed: FastAPI could not resolve them in a class that Ray has pickled.
"""

from pydantic import BaseModel


class Classify(BaseModel):
    tokens: list[int]


class Generate(BaseModel):
    prompt: str
    max_tokens: int


class Step(BaseModel):
    session: str
    token: int
