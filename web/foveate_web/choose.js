// A click on a button chooses its value. The buttons are drawn anew with the answer, and the one
// that was clicked takes the focus again, for those who go on by keyboard.
let clicked = null;
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-value]");
  if (button) {
    clicked = button.dataset.value;
    trigger("choose", { value: clicked });
  }
});
watch("value", () => {
  if (clicked !== null && document.activeElement === document.body) {
    element.querySelector(`button[data-value="${CSS.escape(clicked)}"]`)?.focus({ preventScroll: true });
  }
  clicked = null;
});
