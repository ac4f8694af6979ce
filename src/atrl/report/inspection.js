"use strict";
// A token that is pointed at in one scheme's card is pointed at in all: the response is the same.
(() => {
  const responses = [...document.querySelectorAll(".rollout .response")];
  const tokens = responses.map((response) => [...response.querySelectorAll(".t")]);
  let echoing = false; // the events that are sent from here must not be sent on

  function echo(type, from, targetOf) {
    if (echoing) return;
    echoing = true;
    responses.forEach((response, other) => {
      if (other !== from) targetOf(other).dispatchEvent(new PointerEvent(type, { bubbles: type === "pointerover" }));
    });
    echoing = false;
  }

  responses.forEach((response, here) => {
    const follow = (event) => {
      const index = tokens[here].indexOf(event.target);
      if (index >= 0) echo("pointerover", here, (other) => tokens[other][index]);
    };
    response.addEventListener("pointerover", follow);
    response.addEventListener("focusin", follow);
    for (const type of ["pointerleave", "focusout"]) {
      response.addEventListener(type, () => echo("pointerleave", here, (other) => responses[other]));
    }
  });
})();
