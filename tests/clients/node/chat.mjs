// OpenAI's official client for Node, driven against a base URL; prints what it got as one JSON object.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const asked = {
  model: "demo",
  messages: [{ role: "user", content: "What is the capital of France? Answer in one word." }],
  temperature: 0,
  max_tokens: 12,
};

const models = [];
for await (const model of client.models.list()) models.push(model.id);
const whole = await client.chat.completions.create(asked);
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true }))
  streamed += chunk.choices[0]?.delta?.content ?? "";
const vectors = await client.embeddings.create({ model: "demo-vectors", input: ["a", "b"] });
const refused = await client.chat.completions.create({ ...asked, temperature: 3 }).catch((error) => error);

console.log(JSON.stringify({
  models,
  whole: whole.choices[0].message.content,
  streamed,
  usage: whole.usage,
  widths: vectors.data.map((item) => item.embedding.length),
  refused: { status: refused.status, param: refused.param },
}));
