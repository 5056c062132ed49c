// Serve Firestore's protocol on the port given, until a signal.
const { FirestoreServer } = require("@firestore-emulator/server");
const server = new FirestoreServer();
server.start(Number(process.argv[2])).then(() => console.log("listening"));
