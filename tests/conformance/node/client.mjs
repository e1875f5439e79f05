// Drives a server from Node with the published .proto files alone, and prints
// what it was answered as JSON.
//
//   node client.mjs ADDRESS PROTO_FOLDER GOOGLE_PROTO_FOLDER PICTURE
import { readFileSync } from "node:fs";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [address, protoFolder, googleFolder, pictureFile] = process.argv.slice(2);
const definition = protoLoader.loadSync(
  ["foveate/v1/classifier_service.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"],
  { includeDirs: [protoFolder, googleFolder], keepCase: true, longs: Number, enums: String, oneofs: true },
);
const { foveate } = grpc.loadPackageDefinition(definition);
const client = new foveate.v1.ClassifierService(address, grpc.credentials.createInsecure());
const picture = readFileSync(pictureFile);

function call(method, request) {
  const deadline = new Date(Date.now() + 30_000);
  return new Promise((resolve, reject) => {
    client[method](request, { deadline }, (error, response) => (error ? reject(error) : resolve(response)));
  });
}

function floats(bytes) {
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
}

function details(error) {
  const [trailer] = error.metadata.get("grpc-status-details-bin");
  return Object.fromEntries(
    definition["google.rpc.Status"].deserialize(trailer).details.map(({ type_url, value }) => {
      const type = type_url.split("/").at(-1);
      return [type, definition[type].deserialize(value)];
    }),
  );
}

async function refused(method, request) {
  try {
    await call(method, request);
  } catch (error) {
    return { code: grpc.status[error.code], message: error.details, details: details(error) };
  }
  throw new Error(`${method} was not refused`);
}

function stream(requests) {
  return new Promise((resolve, reject) => {
    const answers = [];
    const call = client.ClassifyStream({ deadline: new Date(Date.now() + 30_000) });
    call.on("data", (answer) => answers.push(answer));
    call.on("error", reject);
    call.on("end", () => resolve(answers));
    requests.forEach((request) => call.write(request));
    call.end();
  });
}

const { models } = await call("ListModels", {});
const { model } = await call("GetModel", { name: models[0].name });
const answer = await call("Classify", {
  encoded: picture,
  top_k: 3,
  cam: { top: 2, forms: ["HEATMAP_FORM_RAW", "HEATMAP_FORM_OVERLAY"] },
  feature_maps: [{ layer: model.layers[0].name, channels: [0, 5] }],
  timing: true,
});
const cells = floats(answer.cams[0].values);
const streamed = await stream([
  { request_id: "first", request: { encoded: picture, top_k: 1 } },
  { request_id: "broken", request: { encoded: Buffer.from("not a picture") } },
  { request_id: "last", request: { encoded: picture, top_k: 1 } },
]);

console.log(
  JSON.stringify({
    models: models.map(({ name, default_version }) => [name, default_version]),
    model: { state: model.state, labels: model.labels.length, input: model.input.height },
    predictions: answer.predictions,
    cam: {
      label: answer.cams[0].label,
      cells: cells.length,
      minimum: Math.min(...cells) - answer.cams[0].minimum,
      maximum: Math.max(...cells) - answer.cams[0].maximum,
      values: Array.from(cells),
      overlay: answer.cams[0].overlay.subarray(1, 4).toString("latin1"),
    },
    featureMap: {
      channels: answer.feature_maps[0].channels,
      values: floats(answer.feature_maps[0].values).length,
      cells: answer.feature_maps[0].height * answer.feature_maps[0].width,
    },
    inferred: answer.timing.infer,
    stream: streamed.map(({ request_id, result, response, error }) => [
      request_id,
      result,
      response?.predictions[0].label ?? error.reason,
    ]),
    badArgument: await refused("Classify", { encoded: picture, top_k: 0 }),
    noModel: await refused("GetModel", { name: "nothing" }),
  }),
);
client.close();
