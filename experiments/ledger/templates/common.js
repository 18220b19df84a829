"use strict";
// An address is #ID&key=value&...: where to go, and what is shown.
const LANGUAGES = ["en", "ko", "both"];
const asked = () => new URLSearchParams(location.hash.slice(1));
const target = () => location.hash.slice(1).split("&").find((part) => part && !part.includes("="));
const language = () => document.body.dataset.language;

function setLanguage(wanted) {
  const chosen = LANGUAGES.includes(wanted) ? wanted : LANGUAGES[0];
  document.body.dataset.language = chosen;
  for (const radio of document.querySelectorAll("input[name=language]")) radio.checked = radio.value === chosen;
  // Links from page to page keep it.
  for (const link of document.querySelectorAll('a:not([href^="http"])')) {
    const plain = (link.dataset.plain ??= link.getAttribute("href"));
    const joint = plain.includes("#") ? "&" : "#";
    link.setAttribute("href", chosen === LANGUAGES[0] ? plain : `${plain}${joint}lang=${chosen}`);
  }
}

// Shows what the address asks for, now and whenever it changes; the language goes into it.
function follow(show, address) {
  for (const radio of document.querySelectorAll("input[name=language]"))
    radio.addEventListener("change", () => {
      setLanguage(radio.value);
      history.pushState(null, "", address());
    });
  window.addEventListener("hashchange", show);
  show();
}
