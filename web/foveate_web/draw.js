// White strokes on black, as MNIST has them. The picture is sent when the pen is lifted.
const canvas = element.querySelector("canvas");
const context = canvas.getContext("2d");
let last = null;

const clear = () => {
  context.fillStyle = "black";
  context.fillRect(0, 0, canvas.width, canvas.height);
};
const place = (event) => {
  const box = canvas.getBoundingClientRect();
  return [
    ((event.clientX - box.left) * canvas.width) / box.width,
    ((event.clientY - box.top) * canvas.height) / box.height,
  ];
};
const stroke = (from, to) => {
  context.strokeStyle = "white";
  context.lineWidth = 22;
  context.lineCap = "round";
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
};

clear();
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
  stroke(last, last);
});
canvas.addEventListener("pointermove", (event) => {
  if (last !== null) {
    const next = place(event);
    stroke(last, next);
    last = next;
  }
});
const lift = () => {
  if (last !== null) {
    last = null;
    trigger("drawn", { picture: canvas.toDataURL("image/png") });
  }
};
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);
element.querySelector("button").addEventListener("click", clear);
