// Echoes every message. The first line it prints is its address.
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  fetch(request, server) {
    return server.upgrade(request) ? undefined : new Response("WebSocket only\n", { status: 400 });
  },
  websocket: {
    perMessageDeflate: false,
    maxPayloadLength: 1024 * 1024,
    idleTimeout: 0,
    message(socket, message) {
      socket.send(message);
    },
  },
});
console.log(`127.0.0.1:${server.port}`);
