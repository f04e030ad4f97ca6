// openai-node: `.parse()` with a zod schema, and a forced tool call as a stream. Run as
// `node forms.mjs URL`; prints one JSON object, or ends with a stack trace.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "unused" });
const messages = [{ role: "user", content: "Tell me of an animal." }];
const same = { model: "octavo", messages, max_tokens: 200, seed: 1 };

const Animal = z.object({ kind: z.enum(["fox", "bear"]), hungry: z.boolean() });

async function parse() {
  const response_format = zodResponseFormat(Animal, "animal");
  const answer = await client.chat.completions.parse({ ...same, response_format });
  return answer.choices[0].message.parsed;
}

async function toolCall() {
  const parameters = {
    type: "object",
    properties: { city: { type: "string", enum: ["Rome", "Oslo"] } },
    required: ["city"],
    additionalProperties: false,
  };
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const runner = client.chat.completions.stream({ ...same, tools, tool_choice: "required" });
  const final = await runner.finalChatCompletion();
  return final.choices[0];
}

console.log(JSON.stringify({ parse: await parse(), toolCall: await toolCall() }));
