// openai-node: completions, chats, streams, the stream helper and errors. Run as
// `node text.mjs URL`; prints one JSON object, or ends with a stack trace.

import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "unused" });
const messages = [{ role: "user", content: "Tell me a story about a fox." }];
const same = { model: "octavo", messages, max_tokens: 24, temperature: 0, ignore_eos: true };

async function completion() {
  const prompt = "Once upon a time";
  const asked = { model: "octavo", prompt, max_tokens: 16, n: 2, seed: 1, ignore_eos: true };
  const plain = await client.completions.create(asked);
  const joined = ["", ""];
  let usage = null;
  const stream_options = { include_usage: true };
  const stream = await client.completions.create({ ...asked, stream: true, stream_options });
  for await (const chunk of stream) {
    for (const choice of chunk.choices) joined[choice.index] += choice.text;
    usage = chunk.usage ?? usage;
  }
  return { plain: plain.choices.map((choice) => choice.text), joined, usage };
}

async function chat() {
  const { data, response, request_id } = await client.chat.completions.create(same).withResponse();
  let joined = "";
  for await (const chunk of await client.chat.completions.create({ ...same, stream: true })) {
    joined += chunk.choices[0].delta.content ?? "";
  }
  return {
    plain: data.choices[0].message.content,
    joined,
    type: response.headers.get("content-type"),
    request_id,
  };
}

async function streamHelper() {
  const runner = client.chat.completions.stream(same);
  let joined = "";
  runner.on("content", (delta) => {
    joined += delta;
  });
  const final = await runner.finalChatCompletion();
  return { joined, choice: final.choices[0] };
}

async function left() {
  const asked = { ...same, max_tokens: 1500, stream: true };
  for await (const chunk of await client.chat.completions.create(asked)) {
    if (chunk.choices[0].delta.content) return chunk.choices[0].delta.content;
  }
}

async function models() {
  const listed = [];
  for await (const model of client.models.list()) listed.push(model.id);
  return { listed, one: await client.models.retrieve(listed[0]) };
}

async function errors() {
  const asked = {
    "wrong value": () => client.chat.completions.create({ ...same, temperature: 9 }),
    "unknown model": () => client.chat.completions.create({ ...same, model: "nobody" }),
    "unknown path": () => client.post("/nowhere", { body: {} }),
  };
  const told = {};
  for (const [name, ask] of Object.entries(asked)) {
    try {
      await ask();
    } catch (error) {
      if (!(error instanceof OpenAI.APIError)) throw error;
      const { status, code, param, type, requestID } = error;
      const { name: kind } = error.constructor;
      told[name] = { kind, status, code, param, type, hasRequestId: Boolean(requestID) };
    }
  }
  return told;
}

const cases = { completion, chat, streamHelper, left, models, errors };
const results = {};
for (const [name, run] of Object.entries(cases)) results[name] = await run();
console.log(JSON.stringify(results));
