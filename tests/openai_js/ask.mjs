// Asks an OpenAI-compatible server with the AI SDK and prints what it understood, as one JSON object.
// Its schemas are strict: an answer or chunk that is not OpenAI's is an error, not a shrug.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const { baseURL, model, prompt, stream, stopAfter, messages } = JSON.parse(process.argv[2]);
const provider = createOpenAICompatible({ name: "mux", baseURL, apiKey: "none", includeUsage: true });
const controller = new AbortController();
const asked = {
  model: provider(model),
  ...(messages ? { messages } : { prompt }),
  maxRetries: 0,
  abortSignal: controller.signal,
  onError: () => undefined, // errors are parts of the stream below
};
const out = { text: "", reasoning: "", errors: [], parts: [], aborted: false };

try {
  if (stream) {
    const answer = streamText(asked);
    for await (const part of answer.fullStream) {
      out.parts.push(part.type);
      if (part.type === "text-delta") out.text += part.text;
      if (part.type === "reasoning-delta") out.reasoning += part.text;
      if (part.type === "error") out.errors.push(told(part.error));
      if (part.type === "abort") out.aborted = true;
      if (part.type === "finish") Object.assign(out, { finish: part.finishReason, usage: part.totalUsage });
      if (stopAfter && out.text.includes(stopAfter)) controller.abort();
    }
  } else {
    const answer = await generateText(asked);
    Object.assign(out, { text: answer.text, finish: answer.finishReason, usage: answer.usage });
  }
} catch (error) {
  out.errors.push(told(error));
}
console.log(JSON.stringify(out));

function told(error) {
  const { name, message, statusCode, responseBody } = error ?? {};
  return { name, message: message ?? JSON.stringify(error), statusCode, responseBody };
}
