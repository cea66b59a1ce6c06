import com.fasterxml.jackson.core.JsonGenerator;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.ByteArrayInputStream;
import java.io.DataInputStream;
import java.io.EOFException;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import org.apache.avro.Schema;
import org.apache.avro.SchemaCompatibility;
import org.apache.avro.SchemaParseException;
import org.apache.avro.file.DataFileReader;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.DecoderFactory;

/**
 * Says what Apache's Avro finds in our files, one line of JSON a record, without losing a bit: floats as the hexadecimal
 * digits of their bits, bytes as length and hash.
 *
 * messages SCHEMA FILE   framed messages, each after its length (4 bytes, big-endian)
 * container FILE         an object container file
 * compatible FILE        pairs of schemas (JSON lists [writer, reader]), one a line: can the reader read it?
 */
public final class ReadAvro {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final int FRAME = 5;

    public static void main(String[] arguments) throws Exception {
        PrintStream out = new PrintStream(System.out, false, "UTF-8");
        switch (arguments[0]) {
            case "messages" -> readMessages(new File(arguments[1]), new File(arguments[2]), out);
            case "container" -> readContainer(new File(arguments[1]), out);
            case "compatible" -> compare(new File(arguments[1]), out);
            default -> throw new IllegalArgumentException(arguments[0]);
        }
        out.flush();
    }

    private static void readMessages(File schemaFile, File file, PrintStream out) throws Exception {
        Schema schema = new Schema.Parser().parse(schemaFile);
        GenericDatumReader<GenericRecord> reader = new GenericDatumReader<>(schema);
        try (DataInputStream in = new DataInputStream(new FileInputStream(file))) {
            while (true) {
                int length;
                try {
                    length = in.readInt();
                } catch (EOFException end) {
                    return;
                }
                byte[] message = in.readNBytes(length);
                BinaryDecoder decoder =
                    DecoderFactory.get().binaryDecoder(message, FRAME, length - FRAME, null);
                GenericRecord record = reader.read(null, decoder);
                if (!decoder.isEnd()) {
                    throw new IOException("bytes are left over");
                }
                print(record, schema, out);
            }
        }
    }

    private static void readContainer(File file, PrintStream out) throws Exception {
        try (DataFileReader<GenericRecord> reader = new DataFileReader<>(file, new GenericDatumReader<>())) {
            while (reader.hasNext()) {
                print(reader.next(), reader.getSchema(), out);
            }
        }
    }

    private static void compare(File file, PrintStream out) throws Exception {
        for (String line : java.nio.file.Files.readAllLines(file.toPath())) {
            String[] pair = JSON.readValue(line, String[].class);
            String answer;
            try {
                Schema writer = new Schema.Parser().parse(pair[0]);
                Schema reader = new Schema.Parser().parse(pair[1]);
                answer = SchemaCompatibility.checkReaderWriterCompatibility(reader, writer).getType().name();
            } catch (SchemaParseException problem) {
                answer = "INVALID";
            }
            out.println(answer);
        }
    }

    private static void print(GenericRecord record, Schema schema, PrintStream out) throws Exception {
        java.io.StringWriter line = new java.io.StringWriter();
        try (JsonGenerator json = JSON.getFactory().createGenerator(line)) {
            write(record, schema, json);
        }
        out.println(line);
    }

    private static void write(Object value, Schema schema, JsonGenerator json) throws Exception {
        switch (schema.getType()) {
            case UNION -> {
                for (Schema branch : schema.getTypes()) {
                    boolean isNull = branch.getType() == Schema.Type.NULL;
                    if (isNull == (value == null)) {
                        write(value, branch, json);
                        return;
                    }
                }
                throw new IOException("no branch for " + value);
            }
            case NULL -> json.writeNull();
            case RECORD -> {
                json.writeStartObject();
                GenericRecord record = (GenericRecord) value;
                for (Schema.Field field : schema.getFields()) {
                    json.writeFieldName(field.name());
                    write(record.get(field.pos()), field.schema(), json);
                }
                json.writeEndObject();
            }
            case ARRAY -> {
                json.writeStartArray();
                for (Object item : (List<?>) value) {
                    write(item, schema.getElementType(), json);
                }
                json.writeEndArray();
            }
            case MAP -> {
                json.writeStartObject();
                for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                    json.writeFieldName(entry.getKey().toString());
                    write(entry.getValue(), schema.getValueType(), json);
                }
                json.writeEndObject();
            }
            case FLOAT -> json.writeString(String.format("float %08x", Float.floatToRawIntBits((Float) value)));
            case DOUBLE -> json.writeString(String.format("double %016x", Double.doubleToRawLongBits((Double) value)));
            case INT, LONG -> json.writeString("whole " + value);
            case BOOLEAN -> json.writeBoolean((Boolean) value);
            case STRING -> json.writeString("text " + value);
            case BYTES -> {
                ByteBuffer buffer = ((ByteBuffer) value).duplicate();
                byte[] bytes = new byte[buffer.remaining()];
                buffer.get(bytes);
                byte[] hash = MessageDigest.getInstance("SHA-256").digest(bytes);
                json.writeString("bytes " + bytes.length + " " + HexFormat.of().formatHex(hash));
            }
            default -> throw new IOException("unexpected type " + schema.getType());
        }
    }
}
