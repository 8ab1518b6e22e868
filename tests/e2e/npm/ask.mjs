// Asks a site through the official JavaScript client and prints what came, as one JSON object.
// Environment: MADANG_URL (with /v1), MADANG_KEY.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.MADANG_URL, apiKey: process.env.MADANG_KEY, maxRetries: 0 });
const model = "madang-chat";
const capital = [{ role: "user", content: "대한민국의 수도는 어디입니까? 한 문장으로 답하세요." }];
const tool = {
  type: "function",
  function: {
    name: "read_temperature",
    description: "Read the temperature of a server room in Celsius",
    parameters: { type: "object", properties: { room: { type: "string" } }, required: ["room"] },
  },
};
const said = {};

said.models = (await client.models.list()).data.map((one) => one.id).sort();

const whole = await client.chat.completions.create({ model, messages: capital, max_tokens: 24, temperature: 0 });
said.whole = whole.choices[0].message.content;

const stream = await client.chat.completions.create({
  model,
  messages: capital,
  max_tokens: 24,
  temperature: 0,
  stream: true,
  stream_options: { include_usage: true },
});
said.stream = "";
for await (const chunk of stream) {
  said.stream += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) said.usage = chunk.usage;
}

const called = await client.chat.completions.create({
  model,
  messages: [{ role: "user", content: "What is the temperature in room B2?" }],
  tools: [tool],
  tool_choice: "required",
  max_tokens: 60,
  temperature: 0,
});
said.call = called.choices[0].message.tool_calls[0].function;
said.finish = called.choices[0].finish_reason;

const response = await client.responses.create({ model, input: capital[0].content, max_output_tokens: 24 });
said.response = response.output_text;
said.events = [];
const events = await client.responses.create({ model, input: "Say one.", max_output_tokens: 8, stream: true });
for await (const event of events) said.events.push(event.type);

const vectors = await client.embeddings.create({ model: "madang-embed", input: ["진동", "온도"] });
said.dimensions = vectors.data.map((one) => one.embedding.length);

try {
  await client.chat.completions.create({ model: "nobody", messages: capital });
} catch (error) {
  said.error = { isNotFound: error instanceof OpenAI.NotFoundError, code: error.code, param: error.param };
}
console.log(JSON.stringify(said));
