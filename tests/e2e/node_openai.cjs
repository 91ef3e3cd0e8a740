// Asks a running server through OpenAI's own client for Node and prints what came of it as one JSON object.
//
// usage: node node_openai.cjs BASE_URL, with the request bodies as JSON on standard input

"use strict";

const OpenAI = require("openai");

async function streamed(client, bodies) {
  const chunks = [];
  for await (const chunk of await client.chat.completions.create({ ...bodies.chat, stream: true })) chunks.push(chunk);
  const runner = client.chat.completions.stream(bodies.chat);
  let numDeltas = 0;
  runner.on("content", () => (numDeltas += 1));
  const final = await runner.finalChatCompletion();
  const withUsage = [];
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create({ ...bodies.chat, ...options })) withUsage.push(chunk);
  return { chunks, final, numDeltas, last: withUsage.at(-1) };
}

async function left(client, bodies) {
  const stream = await client.chat.completions.create({ ...bodies.endless, stream: true });
  let numChunks = 0;
  for await (const _ of stream) if (++numChunks === 3) break;
  const controller = new AbortController();
  const asking = client.chat.completions.create(bodies.endless, { signal: controller.signal });
  setTimeout(() => controller.abort(), 200);
  const name = await asking.then(() => "answered", (error) => error.constructor.name);
  return { numChunks, name };
}

async function refused(client, bodies) {
  const told = {};
  for (const [name, body] of Object.entries(bodies.refused)) {
    told[name] = await client.chat.completions.create(body).then(
      () => "answered",
      (error) => ({ kind: error.constructor.name, status: error.status, code: error.code, param: error.param }),
    );
  }
  return told;
}

async function main(baseURL, bodies) {
  const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0, timeout: 300000 });
  const text = [];
  for await (const chunk of await client.completions.create({ ...bodies.text, stream: true })) text.push(chunk);
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  const { data, response } = await client.chat.completions.create(bodies.chat).withResponse();
  return {
    plain: data,
    contentType: response.headers.get("content-type"),
    streamed: await streamed(client, bodies),
    tool: await client.chat.completions.create(bodies.tool),
    toolStream: await client.chat.completions.stream(bodies.tool).finalChatCompletion(),
    schema: await client.chat.completions.create(bodies.schema),
    parsed: (await client.chat.completions.parse(bodies.schema)).choices[0].message.parsed,
    logprobs: await client.chat.completions.create({ ...bodies.chat, logprobs: true, top_logprobs: 2 }),
    samples: await client.chat.completions.create({ ...bodies.chat, n: 3, temperature: 2, seed: 3 }),
    text: await client.completions.create(bodies.text),
    textStream: text,
    models,
    refused: await refused(client, bodies),
    left: await left(client, bodies),
  };
}

let input = "";
process.stdin.on("data", (piece) => (input += piece));
process.stdin.on("end", () =>
  main(process.argv[2], JSON.parse(input)).then(
    (result) => console.log(JSON.stringify(result)),
    (error) => {
      console.error(error);
      process.exitCode = 1;
    },
  ),
);
