"""Any OpenAI client works: only `base_url` changes, and `model="auto"`.

python -m examples.quickstart.client [PORT]
"""

import sys

from openai import OpenAI


def main() -> None:
    """Stream one answer and say who gave it."""
    port = sys.argv[1] if len(sys.argv) > 1 else "8000"
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    question = "rivers(length, country): Show the length where the country is 'peru'."
    stream = client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": question}], max_tokens=60, temperature=0, stream=True
    )
    answered_by = ""
    for chunk in stream:
        answered_by = chunk.model
        if chunk.choices and chunk.choices[0].delta.content:
            print(chunk.choices[0].delta.content, end="", flush=True)
    print(f"\n(answered by {answered_by})")


if __name__ == "__main__":
    main()
