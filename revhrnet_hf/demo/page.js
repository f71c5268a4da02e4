// What the pointer stands on: class and confidence, read off the hidden image of values; of two results, at the same place.
(() => {
  const contexts = new WeakMap();

  function pixels(image) {
    if (!contexts.has(image)) {
      const canvas = document.createElement("canvas");
      canvas.width = image.naturalWidth;
      canvas.height = image.naturalHeight;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      contexts.set(image, context);
    }
    return contexts.get(image);
  }

  function pointAt(stack, across, down) {
    const image = stack.querySelector(".seg-values");
    if (!image.complete || !image.naturalWidth) return;
    const [column, row] = [Math.floor(across * image.naturalWidth), Math.floor(down * image.naturalHeight)];
    const [id, percent] = pixels(image).getImageData(column, row, 1, 1).data;
    const tip = stack.querySelector(".seg-tip");
    const name = stack.parentElement.querySelectorAll(".seg-names li")[id].textContent;
    tip.textContent = `${name} · ${percent} %`;
    tip.hidden = false;
    // Beside the place, on the side where there is room.
    tip.style.left = across < 0.5 ? `calc(${100 * across}% + 14px)` : "auto";
    tip.style.right = across < 0.5 ? "auto" : `calc(${100 * (1 - across)}% + 14px)`;
    tip.style.top = `clamp(0px, calc(${100 * down}% - 14px), calc(100% - 28px))`;
    const dot = stack.querySelector(".seg-dot");
    dot.hidden = false;
    dot.style.left = `${100 * across}%`;
    dot.style.top = `${100 * down}%`;
  }

  function follow(event) {
    const under = event.target.closest?.(".seg-stack");
    const stacks = document.querySelectorAll(".seg-stack");
    if (!under) {
      for (const mark of document.querySelectorAll(".seg-tip, .seg-dot")) mark.hidden = true;
      return;
    }
    const box = under.getBoundingClientRect();
    const [across, down] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    if (across < 0 || across >= 1 || down < 0 || down >= 1) return;
    for (const stack of stacks) pointAt(stack, across, down);
  }

  document.addEventListener("pointermove", follow);
  document.addEventListener("pointerdown", follow);
})();
